"""What the network is, in float: zoo entries, safe checkpoint loading, deploy-form fusion."""
