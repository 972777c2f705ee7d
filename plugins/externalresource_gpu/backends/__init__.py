"""Where the devices come from: one module per source, each answers `devices() -> list[Device]`."""
