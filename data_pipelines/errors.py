"""The exception that data_pipelines raises for anything a user can mend."""


class DataError(ValueError):
    """Bad input data or a bad request for data; the message names the culprit and the cure in one line."""
