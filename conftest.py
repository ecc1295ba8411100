"""Settings that must stand before anything imports scipy or scikit-learn."""

import os

# Without it scikit-learn silently skips its array checks; scipy reads it once, at import.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# The tests' models are tiny, and a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
