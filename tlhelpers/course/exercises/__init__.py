"""The questions of each page, `page_NN.py`: what is asked, how an answer is judged, hints, solutions."""
