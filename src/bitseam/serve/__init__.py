"""The server: what runs it, its log, metrics and status."""
