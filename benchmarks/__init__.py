"""What the package costs in time and memory, measured beside what one would use instead: `make bench`.

One script per group of rows; each writes `results/NAME.json`, and `table.py` draws the table from these files.
"""
