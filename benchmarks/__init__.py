"""Load tests that compare this service with other ways of writing it."""
