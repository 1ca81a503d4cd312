"""Paginators: what to request next, and which items are ready. Pure state machines: no I/O, no clock of their own."""
