"""Learning block by block: RepAPQ, BRECQ and QDrop."""
