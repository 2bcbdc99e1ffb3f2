"""What surrounds Gradio's own application: middleware, and routes of ours."""
