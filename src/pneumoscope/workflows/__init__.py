"""The pipeline: every command as its stages, called in order.

Each workflow hands the command line a JSON-able document and a text for people (and an exit code
where that is not 0). Only here do the stages meet: data, training, evaluation, inference, report.
"""
