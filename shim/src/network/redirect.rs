//! tc filters that hand every frame arriving at one interface to another.

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{Error, Handle};

use super::{NetworkError, TAP_NAME, netlink};

/// Priority of our filters; also tells them from others'.
const PRIORITY: u16 = 0x5256;
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };

/// Redirects all that arrives at interface `from` to be sent by interface `to`.
pub(super) async fn add(handle: &Handle, from: u32, to: u32) -> Result<(), NetworkError> {
    match handle.qdisc().add(from.cast_signed()).ingress().execute().await {
        Ok(()) => {}
        // An ingress hook that somebody else made serves as well.
        Err(error) if errno(&error) == Some(libc::EEXIST) => {}
        Err(error) => return Err(netlink("add an ingress queueing discipline", &error)),
    }
    let failed = |error| netlink("redirect packets between the tap and the pod's interface", &error);
    handle
        .traffic_filter(from.cast_signed())
        .add()
        .ingress()
        .priority(PRIORITY)
        .protocol(ALL_PROTOCOLS)
        .redirect(to)
        .map_err(failed)?
        .execute()
        .await
        .map_err(failed)
}

/// Removes our tap, our filters and the ingress hooks that hold nothing else, wherever they are in the namespace.
pub(super) async fn remove(handle: &Handle) -> Result<(), NetworkError> {
    let failed = |error| netlink("list the interfaces", &error);
    let links: Vec<_> = handle.link().get().execute().try_collect().await.map_err(failed)?;
    for link in links {
        if link.header.flags.contains(LinkFlags::Loopback) {
            continue;
        }
        let index = link.header.index;
        if link.attributes.iter().any(|attribute| *attribute == LinkAttribute::IfName(TAP_NAME.to_owned())) {
            let deleted = handle.link().del(index).execute().await;
            ignore_missing(deleted).map_err(|error| netlink("remove the tap", &error))?;
        } else {
            release(handle, index.cast_signed()).await?;
        }
    }
    Ok(())
}

async fn release(handle: &Handle, index: i32) -> Result<(), NetworkError> {
    let filters = handle.traffic_filter(index).get().ingress().execute();
    let filters: Vec<TcMessage> = match filters.try_collect().await {
        Ok(filters) => filters,
        // No hook on this interface, or filters of a kind that cannot be read and so are not ours.
        Err(_) => return Ok(()),
    };
    // The upper half of `info` is the priority.
    let ours = |filter: &TcMessage| filter.header.info >> 16 == u32::from(PRIORITY);
    if !filters.iter().any(ours) {
        return Ok(());
    }
    let failed = |error| netlink("remove a redirect", &error);
    ignore_missing(delete_filter(handle, index).await).map_err(failed)?;
    if filters.iter().all(ours) && is_plain_ingress(handle, index).await {
        let mut request = handle.qdisc().del(index);
        request.message_mut().header.parent = TcHandle::INGRESS;
        request.message_mut().header.handle = TcHandle { major: 0xffff, minor: 0 };
        ignore_missing(request.execute().await).map_err(failed)?;
    }
    Ok(())
}

/// Whether the interface's hook is the `ingress` kind that [`add`] makes (and not `clsact`).
async fn is_plain_ingress(handle: &Handle, index: i32) -> bool {
    let mut qdiscs = Box::pin(handle.qdisc().get().index(index).ingress().execute());
    while let Some(Ok(qdisc)) = qdiscs.next().await {
        if qdisc.header.index == index && qdisc.header.parent == TcHandle::INGRESS {
            return qdisc.attributes.contains(&TcAttribute::Kind("ingress".to_owned()));
        }
    }
    false
}

async fn delete_filter(handle: &Handle, index: i32) -> Result<(), Error> {
    let mut message = TcMessage::with_index(index);
    message.header.parent = INGRESS;
    message.header.info = (u32::from(PRIORITY) << 16) | u32::from(ALL_PROTOCOLS);
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut response = handle.clone().request(request)?;
    while let Some(message) = response.next().await {
        if let NetlinkPayload::Error(error) = message.payload
            && error.code.is_some()
        {
            return Err(Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// The index of the interface with this name.
pub(super) async fn link_index(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    let failed = |error| netlink("find the tap", &error);
    let link = handle.link().get().match_name(name).execute().try_next().await.map_err(failed)?;
    link.map(|link| link.header.index).ok_or_else(|| failed(Error::RequestFailed))
}

fn ignore_missing(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}
