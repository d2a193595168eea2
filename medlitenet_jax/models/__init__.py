"""The networks and their operations."""
