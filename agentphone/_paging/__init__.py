"""Paginators: what to request next, and which items are ready. Pure state machines."""
