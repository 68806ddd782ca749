//! What the end-to-end tests are written with: pods, containers, images and a search for leftovers, all driven
//! through `crictl` and `ctr` as on any node.
//!
//! The tests run inside a host that has containerd, crictl, CNI plugins and Ravelin installed, as root.
