"""Reporting guidelines, item by item, in our own words.

One module per guideline: numbers are the guideline's, the wording is a short paraphrase. Whoever
fills one in reads the guideline itself.
"""
