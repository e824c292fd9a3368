"""The work on fine-tuning jobs: the dispatcher of the server, and all that it does with a job, one module a step."""
