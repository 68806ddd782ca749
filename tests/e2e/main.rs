//! The end-to-end tests, one module per theme. They run as root on a host with containerd and Ravelin installed.
