//! How people name a snapshot: `CLUSTER/DATE[/NODE[/PATH]]`.
