"""Experiments: one script per recorded result and per shipped weight (`python -m tlhelpers.experiments.NAME`).

In each the function that makes one run stands first.  What several of them do is in `strategies` (the ways to use
a pretrained body) and `records` (choosing a setting, writing down what came out).
"""
