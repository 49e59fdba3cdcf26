"""Actor-critics, one file each; they know no objective."""
