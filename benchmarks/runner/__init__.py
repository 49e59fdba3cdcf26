"""What `metarl bench` costs beside the training itself, and what a second core is worth."""
