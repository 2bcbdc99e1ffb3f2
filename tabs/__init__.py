"""The page: a Gradio app on the services of `isengard`. Nothing below this package knows Gradio."""
