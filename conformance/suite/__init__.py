"""The suite that replays fixtures, for `conformance run` and `pytest --pyargs conformance.suite`."""
