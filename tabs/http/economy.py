"""What Gradio does more often than this page needs: on few cores each of it is taken from a training."""

import gradio as gr

#: Seconds between two looks for queued calls, and for progress of those that run. Gradio's own are 1 and 10 ms, which is
#: 5 % of a core while nobody does anything.
QUEUE_S, PROGRESS_S = 0.03, 0.1


def economise(demo: gr.Blocks) -> None:
    """Let the queue rest; call it before the launch. There is no public setting."""
    queue = demo._queue
    queue.sleep_when_free, queue.progress_update_sleep_when_free = QUEUE_S, PROGRESS_S
