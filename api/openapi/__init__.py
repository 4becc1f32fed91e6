"""The OpenAPI document, made from the route table, and the pages that show it."""
