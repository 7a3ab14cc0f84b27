"""A live view of run folders in the browser: what `tierfed ui` serves. It reads, and never writes."""
