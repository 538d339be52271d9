"""Taking a model elsewhere: exported graphs and the certificate that they answer alike."""
