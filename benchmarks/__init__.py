"""Scripts that measure the engine; no part of the installed package."""
