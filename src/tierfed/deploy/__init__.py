"""Cloud, fogs and devices as processes on real machines."""
