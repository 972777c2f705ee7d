"""From the name of a driver to its devices, and what authors of drivers build on."""
