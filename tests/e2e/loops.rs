//! Tunnels that lead to tunnels: those that lead to themselves end at once, and the others do not.

use qtunnel::{Address, AgentConfig, Carrier, Event, HostHeader, Upstream};

use crate::lab::{Lab, Server};

on_each_carrier!(a_tunnel_that_leads_to_itself_is_refused_at_once);
async fn a_tunnel_that_leads_to_itself_is_refused_at_once(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let mut agent = lab.agent("blog", edge(&lab)).await;

    let reply = lab.visitor("blog").get("/round").await;

    assert_eq!(reply.status, 508);
    assert_eq!(reply.header("x-qtunnel-error"), "loop_detected");
    let problem = agent.event(|event| match event {
        Event::Request(log) if log.problem.is_some() => log.problem.clone(),
        _ => None,
    });
    let problem = problem.await;
    assert!(problem.contains("leads to itself"), "{problem}");
    let requests = agent.count(|event| matches!(event, Event::Request(_)));
    assert!(requests <= 2, "{requests} requests");
}

on_each_carrier!(a_loop_through_several_edges_is_refused_as_well);
async fn a_loop_through_several_edges_is_refused_as_well(carrier: Carrier) {
    let one = Lab::start().await.over(carrier);
    let other = Lab::start().await.over(carrier);
    let _there = one
        .agent_with("blog", edge(&other), called("shop.localhost"))
        .await;
    let _back = other
        .agent_with("shop", edge(&one), called("blog.localhost"))
        .await;

    for visitor in [one.visitor("blog"), other.visitor("shop")] {
        let reply = visitor.get("/").await;

        assert_eq!(reply.status, 508);
        assert_eq!(reply.header("x-qtunnel-error"), "loop_detected");
    }
}

on_each_carrier!(tunnels_that_lead_to_other_tunnels_pass);
async fn tunnels_that_lead_to_other_tunnels_pass(carrier: Carrier) {
    let one = Lab::start().await.over(carrier);
    let other = Lab::start().await.over(carrier);
    let upstream = Server::text("the end").await;
    let _end = one.agent("end", &upstream).await;
    // To another tunnel of another edge, from there to one of the first edge, and to another one there.
    let _near = one
        .agent_with("near", edge(&one), called("end.localhost"))
        .await;
    let _far = other
        .agent_with("far", edge(&one), called("near.localhost"))
        .await;
    let _start = one
        .agent_with("start", edge(&other), called("far.localhost"))
        .await;

    let reply = one.visitor("start").get("/").await;

    assert_eq!((reply.status, reply.text()), (200, "the end"));
}

on_each_carrier!(what_a_visitor_says_about_loops_ends_nobodys_request);
async fn what_a_visitor_says_about_loops_ends_nobodys_request(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let request = "GET / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: cdn-loop\r\ncdn-loop: other.example; a=b\r\n\r\n";
    let mut marks = Vec::new();
    for _ in 0..2 {
        let mut visitor = lab.visitor("blog").wire().await;
        visitor.send(request).await;

        let mut wire = wires.next().await;
        let head = wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .await;

        let hops = crate::lab::head::values(head.as_bytes(), "cdn-loop");
        assert_eq!(hops[0], b"other.example; a=b", "{head}");
        marks.push(hops[1].clone());
        assert!(visitor.head().await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(marks[0], marks[1]);
}

/// The edge itself as an upstream.
fn edge(lab: &Lab) -> Upstream {
    let address: Address = lab.http.to_string().parse().expect("an address");
    address.into()
}

/// Call the upstream by this name.
fn called(host: &'static str) -> impl FnOnce(&mut AgentConfig) {
    move |config| {
        let host = HostHeader::Value(host.parse().expect("a host"));
        config.tunnels[0].host_header = host;
    }
}
