"""`ris-demo-ui`: a page to drop an image on and ask it, with Gradio."""
