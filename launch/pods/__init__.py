"""Running on Cloud TPU: queued resources (TPU VMs) and GKE (JobSet). docs/pods.md tells the whole way."""
