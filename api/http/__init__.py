"""HTTP resources: reading requests, conditions, responses, and the gate that admits requests."""
