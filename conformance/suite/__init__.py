"""The pytest suite that replays fixtures; the plugin parametrises it. Run by `conformance run` and `pytest --pyargs conformance.suite`."""
