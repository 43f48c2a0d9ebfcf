"""The tables of the mixture paper: its cells run, compared and written down.

paper       the printed numbers
rows        what each table is made of: the paper's rows, and rows that it lacks
cells       one set, one trained network: content-addressed, so that nothing is done twice
cost, rates operations of a cell, and seconds from what was measured before
plan        options -> cells in the order in which they are run
places, store, run, jobs   running one cell, and many
stats, lines, compare      what the records say, over distillation seeds
markdown, figures, page, shown   how it is shown
"""
