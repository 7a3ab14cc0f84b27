"""An algorithm of tierfed on Flower."""
