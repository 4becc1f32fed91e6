"""Helpers that tests of several areas share: servers, commands, databases, the Neon rig, histories."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
"""The root of the repository."""
