"""`metarl report`: what a suite found, as tables, pictures and one page."""
