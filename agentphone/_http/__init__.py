"""HTTP: describe calls, parse responses, retry, and keep connections."""
