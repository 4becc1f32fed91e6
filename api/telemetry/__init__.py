"""Telemetry: metrics, logs and traces."""
