"""HTTP: describe requests, parse responses, retry, and manage connections."""
