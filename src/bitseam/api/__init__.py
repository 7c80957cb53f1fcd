"""What people import: `from bitseam import Client, Server, Stream, load_recipe`."""
