"""Mutation testing: are the tests red when a line of `api/` is wrong? `python -m tests.mutants --help`.

The changes are mostly mutmut's. Its runner is not used: it leaves decorated functions and a module's constants alone,
where half of the slips would be made, and puts a plain function in the place of each coroutine function.
"""
