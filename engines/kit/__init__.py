"""The build kit: one archive that builds, checks and installs an engine on its device."""
