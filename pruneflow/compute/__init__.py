"""Where models run: placement on devices, and ranks that share the work."""
