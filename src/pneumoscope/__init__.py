"""pneumoscope."""
