//! What a restore would do, decided before anything happens.
