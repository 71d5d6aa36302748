"""Commands for Cloud TPU: queued resources (TPU VMs) and GKE (JobSet). docs/pods.md explains all steps."""
