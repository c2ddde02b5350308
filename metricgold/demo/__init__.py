"""The page of ``metricgold demo``: plain functions, and Gradio around them."""
