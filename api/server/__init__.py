"""The server process: the HTTP protocol with its limits, workers, signals, and draining."""
