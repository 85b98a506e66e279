//! What packets travel on: sockets, carriers and the congestion control of the one QUIC connection.
