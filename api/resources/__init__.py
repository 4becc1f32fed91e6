"""Shared by every resource: its description, and what its handlers are given."""
